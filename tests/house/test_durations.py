"""The table of what takes how long, from a report by hand."""

import durations

REPORT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.app.test_data" name="test_a" time="1.5"/>
<testcase classname="tests.app.test_data" name="test_b[x-1]" time="0.25"/>
<testcase classname="tests.lif.test_lif.TestForms" name="test_c" time="2.5"><skipped/></testcase>
</testsuite></testsuites>
"""


def test_seconds_by_file_and_by_test(tmp_path):
    path = tmp_path / "report.xml"
    path.write_text(REPORT)
    text = durations.table(*durations.read(path), "a machine")
    assert text.splitlines() == [
        "# a machine",
        "# Seconds of one process, with those of others beside it.",
        "",
        "      4.2       3 tests in 2 files",
        "",
        "by file",
        "      2.5       1  lif/test_lif.py",
        "      1.8       2  app/test_data.py",
        "",
        "the 3 slowest",
        "      2.5  lif/test_lif.py::test_c",
        "      1.5  app/test_data.py::test_a",
        "      0.2  app/test_data.py::test_b[x-1]",
    ]
