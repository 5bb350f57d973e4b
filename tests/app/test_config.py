"""What a configuration's texts mean, and what of YAML is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("yaml", "lightning", "rich"):
    pytest.importorskip(package)

from realspike import cli
from realspike.config import datasets, run_config
from realspike.config.network_config import NetworkConfig
from realspike.config.run_config import ConfigError, RunConfig
from realspike.errors import DataError
from realspike.inspect import trained_file


def of_file(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return run_config.read(path)


def value_of(config, key):
    section, name = run_config.resolve_key(key)
    return getattr(getattr(config, section), name)


MEANINGS = [
    ("seed", "010", 10),
    ("seed", "-0", 0),
    ("seed", "1_000", 1000),
    ("seed", "0x10", 16),
    ("epochs", "0o17", 15),
    ("learning_rate", "1e-3", 0.001),
    ("learning_rate", "3", 3.0),
    ("learning_rate", ".5", 0.5),
    ("learning_rate", "1E-3", 0.001),
    *(("flip", text, True) for text in ("true", "yes", "on", "True", "YES")),
    *(("ema", text, 0.0) for text in ("0", "0.0", "00")),
    *(("detach_reset", text, False) for text in ("false", "no", "off", "FALSE")),
    *(("width", text, None) for text in ("null", "~", "")),
    *(("root", text, text) for text in ("2024", "010", "1e3", "yes", "2024-01-01", "1:30", "a b")),
]


@pytest.mark.parametrize(("key", "text", "value"), MEANINGS)
def test_the_key_decides_what_a_text_means(key, text, value, tmp_path):
    section, name = run_config.resolve_key(key)
    for config in (
        run_config.read(None, [f"{key}={text}"]),
        of_file(tmp_path, f"{section}:\n  {name}: {text} # why\n"),
        of_file(tmp_path, f'{section}: {{{name}: "{text}"}}\n'),
    ):
        assert value_of(config, key) == value
        assert type(value_of(config, key)) is type(value)
        (tmp_path / "again.yaml").write_text(config.to_yaml())
        assert run_config.read(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("text", ["/x #y", "&x y", "*x", "!x", "{x", "[x", "null", "~/a", "'x'"])
def test_an_override_is_taken_as_it_is(text):
    assert run_config.read(None, [f"data.root={text}"]).data.root == text


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed=1:30", "training.seed must be an integer; got '1:30'"),
        ("seed=3.0", "training.seed must be an integer; got '3.0'"),
        ("seed=" + "9" * 5000, "training.seed must be an integer; got '99999"),
        ("seed=", "training.seed must be an integer; got ''"),
        ("seed=null", "training.seed must be an integer; got 'null'"),
        ("width=a", "network.width must be an integer or null; got 'a'"),
        ("flip=1", "data.flip must be true or false; got '1'"),
        ("flip=y", "data.flip must be true or false; got 'y'"),
        ("learning_rate=.inf", "training.learning_rate must be finite; got inf"),
        ("epochs=1000001", "training.epochs must be at least 1 and at most 1000000"),
        ("threads=" + "9" * 20, "training.threads must be at least 1 and at most 1024"),
        ("root=a\0b", "data.root must be a text"),
    ],
)
def test_what_a_text_cannot_mean_is_refused(override, reason):
    with pytest.raises(ConfigError) as raised:
        run_config.read(None, [override])
    assert reason in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufefftraining:\r\n  epochs: 3\r\n", 3),
        ("training:\n  epochs: 3\nnetwork:\n", 3),
        ("# nothing\n", 400),
        ("", 400),
        ("---\n", 400),
        ("network: ~\ntraining: {}\n", 400),
    ],
)
def test_files_that_say_little(text, expected, tmp_path):
    assert of_file(tmp_path, text).training.epochs == expected


LAUGHS = "a: &a [x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("training:\n  epochs: 3\n  epochs: 3\n", "line 3: training has 'epochs' twice"),
        (
            "training: {}\ndata: {}\ntraining: {}\n",
            "the configuration has 'training' twice",
        ),
        ("training: {epochs: 3, 'epochs': 4}\n", "training has 'epochs' twice"),
        ("training:\n  seed: !!int 3\n", "line 2: tags (!)"),
        ("data:\n  root: !!python/object/apply:os.system [touch owned]\n", "line 2: tags (!)"),
        ("!!map {}", "tags (!)"),
        ("training: &t {epochs: 3}\ndata: *t\n", "anchors (&)"),
        (LAUGHS, "anchors (&)"),
        ("a: " + "[" * 20_000, "a must be a section of keys"),
        ("{" * 20_000, "a key of the configuration must be a text"),
        ("training: {seed: " + "[" * 20_000, "training.seed must be one value"),
        ("training: {seed: {a: 3}}", "training.seed must be one value"),
        ("? [a]\n: b\n", "a key of the configuration must be a text"),
        ("<<: {epochs: 3}\n", "unknown section '<<'"),
        ("1: {2: 3}\n", "unknown section '1'"),
        ("epochs: 3\n", "unknown section 'epochs': it is a key of training"),
        ("training: {width: 3}\n", "unknown key of training 'width': it is a key of network"),
        ("training: {epohcs: 3}\n", "unknown key of training 'epohcs' (did you mean 'epochs'?)"),
        ("training: {}\n---\ndata: {}\n", "it holds 2 documents"),
        ("text", "it must hold sections"),
        ("training:\n\tepochs: 3\n", "it is no YAML"),
        ("training: 'open\n", "it is no YAML"),
        ("training: {}\n\0", "it is no YAML"),
        ("training:\n  epochs: 2024-01-01\n", "an integer; got '2024-01-01'"),
        ("data:\n  root:\n", "data.root must be a text; got None"),
        ("data:\n  root: null\n", "data.root must be a text; got None"),
        (b"data:\n  root: \xff\n", "it is not UTF-8"),
        ("training: {}".encode("utf-16"), "it is not UTF-8"),
        ("#" * 70_000, "it has more than 65536 bytes"),
    ],
)
def test_what_is_no_configuration_is_refused_in_one_line(text, reason, tmp_path):
    with pytest.raises(ConfigError) as raised:
        of_file(tmp_path, text)
    message = str(raised.value)
    assert reason in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(tmp_path))


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory"):
        run_config.read(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        run_config.read(tmp_path / "absent")


def test_keys_are_given_once(tmp_path):
    for overrides in (["epochs=3", "epochs=3"], ["epochs=3", "training.epochs=4"]):
        with pytest.raises(ConfigError, match=r"training\.epochs is given twice: '3' and"):
            run_config.read(None, overrides)
        with pytest.raises(ConfigError, match="given twice"):
            trained_file.config_of(NetworkConfig(), {}, overrides)
        assert cli.main(["table", "1", "--data", "digits", *overrides]) == 2
    path = tmp_path / "c.yaml"
    path.write_text("training: {epochs: 3}")
    assert run_config.read(path, ["epochs=5"]).training.epochs == 5, "of the file, it is changed"


def test_values_of_a_stored_configuration_are_shown_in_short():
    value = []
    for _ in range(5000):
        value = [value]
    for hostile in (value, ["x" * 10_000] * 10_000, {"a": value}):
        for call in (
            lambda value: RunConfig.from_dict({"training": {"seed": value}}),
            lambda value: RunConfig.from_dict({"training": value}),
            lambda value: NetworkConfig(timesteps=value),
            lambda value: NetworkConfig(architecture=value),
            lambda value: NetworkConfig(decay=value),
        ):
            with pytest.raises(ValueError) as raised:
                call(hostile)
            assert len(str(raised.value)) < 600


def test_every_path_may_begin_at_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("data:\n  name: cifar10\n  root: ~/cifar\n")
    assert run_config.read(tmp_path / "c.yaml").data.folder == tmp_path / "cifar"
    assert run_config.read(tmp_path / "c.yaml").data.root == "~/cifar", "kept as it was written"
    for arguments, named in (
        (["train", "--config", "~/c.yaml"], "cifar/cifar-10-python.tar.gz"),
        (["train", "--resume", "~/run"], "run"),
        (["train", "name=cifar100", "data.root=~/x"], "x/cifar-100-python.tar.gz"),
        (["table", "1", "data.root=~/x"], "x/cifar-10-python.tar.gz"),
        (["table", "1", "--data=digits", "--save=~/c.yaml/a"], "c.yaml/a"),
        (["eval", "~/model"], "model"),
        (["fold", "~/model", "-o", "x"], "model"),
        (["verify", "~/model", "x"], "model"),
        (["plot", "~/model"], "model"),
    ):
        assert cli.main(arguments) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert str(tmp_path / named) in line


@pytest.mark.parametrize(
    "arguments",
    [
        *(["train", "--out", ""], ["train", "--resume", ""], ["train", "--config", ""]),
        *(["eval", ""], ["fold", "a", "-o", ""], ["verify", "a", ""], ["export", "a", "-o", ""]),
        *(["table", "1", "--out", ""], ["table", "1", "--save", ""], ["quickstart", "--out="]),
        *(["plot", ""], ["plot", "a", "--beside", ""]),
    ],
)
def test_no_path_is_empty(arguments, capsys):
    """A variable of the shell that was never set would name the folder where one is."""
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert "must be a path; got ''" in capsys.readouterr().err


# Data that are not there


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "cifar10",
            ["cifar-10-batches-py", "`realspike data cifar10 --root absent`"],
        ),
        (
            "cifar100",
            ["cifar-100-python", "`realspike data cifar100 --root absent`"],
        ),
        ("cifar10-dvs", ["airplane", "https://doi.org/10.6084/m9.figshare.4724671"]),
        ("images", ["train", "train/CLASS/*.jpg"]),
    ],
)
def test_missing_data_are_named_before_lightning_and_leave_no_folder(name, words, tmp_path):
    code = (
        "import sys; from realspike import cli; code = cli.main(sys.argv[1:]); "
        "print(code, 'torch' in sys.modules, 'lightning' in sys.modules)"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code, "train", f"name={name}", "root=absent", "--out", "run"],
        **{"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 120},
        env=os.environ | {"PYTHONPATH": path},
        check=True,
    )
    assert done.stdout.split() == ["2", "False", "False"]
    [line] = done.stderr.splitlines()
    assert all(word in line for word in ["absent", *words])
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_data_have_gone_is_not_resumed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    (tmp_path / "config.yaml").write_text("data: {name: cifar10, root: absent}")
    assert cli.main(["train", "--resume", str(tmp_path)]) == 2
    assert "there is neither absent/cifar-10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("tensorboard", ["train", "name=digits", "architecture=digits"]),
        ("matplotlib", ["train", "name=digits", "architecture=digits"]),
        ("tensorboard", ["table", "2", "--data", "digits"]),
        ("tensorboard", ["quickstart"]),
    ],
    ids=["tensorboard-train", "matplotlib-train", "tensorboard-table", "tensorboard-quickstart"],
)
def test_what_a_run_needs_is_asked_for_before_it(package, command, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "matplotlib":
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.chdir(tmp_path)
    short = ["epochs=1"] if command[0] != "quickstart" else ["--epochs", "1"]
    assert cli.main([*command, *short]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{package} is needed here" in line
    assert "pip install '.[" in line
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_data_that_cannot_be_read_leave_no_folder(tmp_path, capsys):
    for part in ("train", "val"):
        (tmp_path / "images" / part).mkdir(parents=True)
    out = tmp_path / "run"
    arguments = ["name=images", f"root={tmp_path / 'images'}", "device=cpu", "--out", str(out)]
    assert cli.main(["train", *arguments]) == 2
    assert "no folders of classes" in capsys.readouterr().err
    assert not out.exists()


def test_one_of_the_names_is_enough(tmp_path):
    with pytest.raises(DataError, match="neither"):
        datasets.check_present("cifar10", tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").touch()
    datasets.check_present("cifar10", tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"neither .*/val nor .*/test"):
        datasets.check_present("images", tmp_path)
    datasets.check_present("digits", Path("absent"))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("timesteps", 65, "timesteps must be at least 1 and at most 64; got 65"),
        ("width", 0, "width must be at least 1 and at most 512; got 0"),
        ("decay", 1.5, "decay must be at least 0 and at most 1; got 1.5"),
        ("v_threshold", 0.0, "v_threshold must be above 0 and at most 100; got 0.0"),
        ("granularity", "pixel", "granularity must be one of none, layer, channel, element"),
    ],
)
def test_a_network_and_a_run_accept_the_same(key, value, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        NetworkConfig(**{key: value})
    with pytest.raises(ConfigError, match=rf"^network\.{says}"):
        RunConfig().replaced(**{key: value})
    if key in ("timesteps", "width"):
        NetworkConfig(architecture="a:B", **{key: 2**16})
        RunConfig().replaced(architecture="a:B", **{key: 2**16})
        with pytest.raises(ConfigError, match=rf"^network\.{key} must be .* at most 65536"):
            RunConfig().replaced(architecture="a:B", **{key: 2**16 + 1})
    smallest = RunConfig().replaced(v_threshold=1e-9)
    assert smallest.network_config() == NetworkConfig(
        "element", architecture="resnet20", v_threshold=1e-9, threshold_norm=True
    )


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        # By its meaning, where another one is spelled more like it.
        *(("device=gpu", "cuda"), ("device=GPU:0", "cuda"), ("precision=fp32", "32-true")),
        *(("precision=32", "32-true"), ("precision=bfloat16", "bf16-mixed")),
        *(("pooling=mean", "average"), ("granularity=neuron", "element")),
        *(("granularity=binary", "none"), ("vth=1", "v_threshold"), ("model=vgg5", "architecture")),
        ("architecture=resnet18", "sew_resnet18"),
        *(("data.dataset=digits", "data.name"), ("training.grad_clip=1", "training.clip_gradient")),
        # By its beginning, which one name alone has.
        *(("clip=1", "clip_gradient"), ("training.clip=1", "training.clip_gradient")),
        *(("detach=1", "detach_reset"), ("precision=bf16", "bf16-mixed")),
        # By its initials, or its letters.
        *(("lr=1", "learning_rate"), ("device=cuda:0", "cuda"), ("device=cup", "cpu")),
        *(("architecture=resnet", "resnet8"), ("architecture=sew-resnet18", "sew_resnet18")),
        *(("name=cifar", "cifar10"), ("batch=3", "batch_size")),
    ],
)
def test_a_wrong_name_is_told_what_was_meant(override, meant):
    with pytest.raises(ConfigError, match=rf"\(did you mean '{re.escape(meant)}'\?\)"):
        run_config.read(None, [override])
