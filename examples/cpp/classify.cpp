// Runs a folded network from an AOTInductor package, without Python:
//
//   classify net.pt2 images.f32 scores.f32 C H W
//
// images.f32 holds N x C x H x W float32 numbers; N x classes are written to scores.f32. The
// package is made in Python of rso.without_custom_ops(folded), whose operators are PyTorch's own:
// those of the realspike namespace are registered by Python alone.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

std::vector<char> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) {
    std::cerr << "usage: classify net.pt2 images.f32 scores.f32 C H W\n";
    return 2;
  }
  try {
    const c10::InferenceMode inference;
    const int64_t C = std::stoll(argv[4]), H = std::stoll(argv[5]), W = std::stoll(argv[6]);
    std::vector<char> bytes = read(argv[2]);
    const int64_t image = C * H * W * static_cast<int64_t>(sizeof(float));
    const int64_t N = static_cast<int64_t>(bytes.size()) / image;
    if (N == 0 || N * image != static_cast<int64_t>(bytes.size())) {
      throw std::runtime_error("the images are not whole ones of C x H x W");
    }
    const torch::Tensor images =
        torch::from_blob(bytes.data(), {N, C, H, W}, torch::kFloat32).clone();

    torch::inductor::AOTIModelPackageLoader network(argv[1]);
    const torch::Tensor scores = network.run({images}).at(0).contiguous();  // [N, classes]

    std::ofstream(argv[3], std::ios::binary)
        .write(static_cast<const char*>(scores.data_ptr()),
               static_cast<std::streamsize>(scores.nbytes()));
    std::cout << scores.argmax(1) << '\n';
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
