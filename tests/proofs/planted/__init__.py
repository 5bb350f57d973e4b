"""The bugs that plant_bugs.py plants; each names the tests that must notice it.

A bug reads and writes nothing outside its tensors, so that a test fails and no process crashes;
those that do are for test_cpu_sanitizers.py, which runs the kernels in processes of their own.
"""

from planted import (
    app,
    batch_norm_lif,
    batch_norm_lif_cpu,
    convert,
    export,
    lif,
    norm_lif,
    ops,
    reparam,
    unshared_conv,
    unshared_matmul,
)

MODULES = (
    lif,
    batch_norm_lif,
    norm_lif,
    batch_norm_lif_cpu,
    unshared_conv,
    unshared_matmul,
    ops,
    reparam,
    export,
    app,
    convert,
)
BUGS = [bug for module in MODULES for bug in module.BUGS]
