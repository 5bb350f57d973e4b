"""A version at once, examples that are right, completion, and the doctor."""

import io
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import run_python

for package in ("rich", "shtab", "yaml"):
    pytest.importorskip(package)

from realspike import cli, progress
from realspike.inspect import doctor

import realspike_ops as rso

_, COMMANDS = cli._parsers()


def test_the_version_needs_no_torch():
    program = (
        "import sys\nfrom realspike import cli\n"
        "try: cli.main(['--version'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    assert run_python("-c", program).split() == ["realspike", rso.__version__, "False"]


def examples_of(parser) -> list[str]:
    shown = parser.format_help().partition("\nexamples:\n")[2].partition("\n\n")[0]
    return shown.splitlines()


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_what_the_command_takes(name):
    examples = examples_of(COMMANDS[name])
    assert examples
    for example in examples:
        program, *arguments = shlex.split(example)
        assert program == "realspike"
        parsed = cli._parse(arguments)
        assert parsed.command == name
        config = getattr(parsed, "config", None)
        assert config is None or config.exists(), example


def test_the_whole_help_has_an_example():
    whole, _ = cli._parsers()
    example = re.search(r"^example: realspike (.*)$", whole.format_help(), re.MULTILINE)
    assert cli._parse(shlex.split(example[1])).run


def completed(capsys, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    with pytest.raises(SystemExit) as raised:
        cli.main(["--print-completion", "bash"])
    assert not raised.value.code
    script = capsys.readouterr().out + (
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}\n"
        '_shtab_realspike; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_and_files(capsys, tmp_path, monkeypatch):
    assert completed(capsys, "realspike", "pl") == {"plot"}
    assert completed(capsys, "realspike", "verify", "--ag") == {"--agreement"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folded.safetensors").touch()
    assert completed(capsys, "realspike", "eval", "fol") == {"folded.safetensors"}


def test_completion_is_for_shells_that_there_are(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["--print-completion", "fish"])
    assert raised.value.code == 2
    assert "must be one of bash, zsh, tcsh" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_has_one_style(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert list(progress.track(["a", "b", "c"], "test samples")) == ["a", "b", "c"]
    assert re.search(r"━.* test samples \d/3 .*left", terminal.getvalue())
    monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
    assert list(progress.track(["a", "b"], "test samples")) == ["a", "b"]
    assert pipe.getvalue() == ""
    # Whoever shows how far it is takes the bar from there.
    application = Path(progress.__file__).parent
    makers = [p for p in application.rglob("*.py") if "rich.progress" in p.read_text()]
    assert makers == [application / "progress.py"]


def doctor_says(capsys, *arguments, code=0) -> str:
    assert cli.main(["doctor", *arguments]) == code
    return capsys.readouterr().out


def test_doctor(capsys):
    lines = doctor_says(capsys).splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines)
    assert facts["realspike"].startswith(rso.__version__)
    assert os.path.dirname(rso.__file__) in facts["realspike"]
    assert facts["torch"].startswith(f"{torch.__version__}, built for")
    assert facts["build"] == rso.build_info()
    assert sys.executable in facts["python"]
    assert "numpy" in facts["packages"]
    tested = [line for line in lines if line.startswith("cpu ") and line.endswith("right")]
    for op in ("lif:", "lif, gradient:", "pack_spikes:", "unshared_spike_conv:"):
        assert any(f"{op} " in line and " C++, " in line for line in tested), op
    assert lines[-1].split()[:2] == ["self-test", "passed,"]


def test_doctor_is_quick():
    def seconds():  # of a processor: others may be busy
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = seconds()
    report = run_python("-m", "realspike", "doctor", "--json")
    assert seconds() - before < 30  # three to five on a usual machine
    assert json.loads(report)["seconds"] > 0


# As broken kernels would: one spike, one unpacked bit, one current is another.
@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("lif", "lif"),
        ("unpack_spikes", "pack_spikes"),
        ("unshared_spike_conv", "unshared_spike_conv"),
    ],
)
def test_doctor_notices_one_wrong_number(name, op, monkeypatch, capsys):
    right = getattr(rso, name)

    def wrong(*arguments, **options):
        result = right(*arguments, **options).clone()
        result.view(-1)[-1] += 1
        return result

    monkeypatch.setattr(rso, name, wrong)
    report = json.loads(doctor_says(capsys, "--json", code=1))
    errors = {check["op"]: check["error"] for check in report["self_test"]}
    assert "differ from the reference" in errors.pop(op)
    assert not any(errors.values())
    printed = doctor_says(capsys, code=1)
    assert "wrong: ArithmeticError" in printed
    assert "FAILED" in printed


def test_doctor_notices_a_wrong_gradient(monkeypatch):
    right = rso.lif

    def wrong(*arguments, **options):
        y = right(*arguments, **options)
        if y.requires_grad:
            y.register_hook(lambda grad_y: 2 * grad_y)
        return y

    monkeypatch.setattr(rso, "lif", wrong)
    errors = {check.op: check.error for check in doctor.examine().checks}
    assert "gradients differ" in errors.pop("lif, gradient")
    assert not any(errors.values())


def test_doctor_reports_an_extension_that_does_not_load(monkeypatch, capsys):
    def missing():
        raise ImportError("realspike_ops: the compiled extension is missing")

    monkeypatch.setattr(rso, "build_info", missing)
    printed = doctor_says(capsys, code=1)
    assert re.search("^build +ImportError: .*extension is missing$", printed, re.MULTILINE)
    assert re.search("^torch ", printed, re.MULTILINE)
    assert "FAILED" in printed


def test_doctor_says_what_is_not_built_for_a_gpu():
    assert doctor._kernel_of("lif", "cuda:0").startswith("triton ")
    expected = "" if rso.build_info().startswith("CPU kernels only") else "CUDA"
    assert doctor._kernel_of("unshared_spike_conv", "cuda:0") == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_at_most_100_columns_wide(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert max(map(len, COMMANDS[name].format_help().splitlines())) <= 100
