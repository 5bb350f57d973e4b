"""torch.library ops `realspike::*`: allocation, dispatch by device, fake kernels and autograd."""

import torch

LIBRARY = torch.library.Library("realspike", "DEF")
