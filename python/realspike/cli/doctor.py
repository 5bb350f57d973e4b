"""`realspike doctor`."""

import json

from realspike.cli import common


def add(commands) -> None:
    parser = common.add_command(
        commands,
        "doctor",
        run,
        help="print what a report of a bug needs, and test the kernels on every device",
        description="Print versions, how the extension was built, the devices and which kernels\n"
        "run on them, and compare what every op computes with the reference. Takes a few\n"
        "seconds; exit code 1 if an op does not compute what it should.",
        examples=["realspike doctor"],
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments) -> int:
    from realspike.inspect import doctor

    report = doctor.examine()
    if arguments.json:
        print(json.dumps(_as_json(report), indent=2))
    else:
        print("\n".join(_lines(report)))
    return 0 if report.healthy else 1


def _as_json(report) -> dict:
    checks = [check._asdict() for check in report.checks]
    return report.facts | {"self_test": checks, "seconds": round(report.seconds, 2)}


def _lines(report):
    for name, fact in report.facts.items():
        yield f"{name:<12} {fact}"
    for check in report.checks:
        said = f"wrong: {check.error}" if check.error else "right" if check.kernel else "not built"
        yield f"{check.device:<12} {check.op + ':':<21} {check.kernel or 'none':<14} {said}"
    yield f"{'self-test':<12} {'passed' if report.healthy else 'FAILED'}, {report.seconds:.1f} s"
