"""``python -m robustbench_ln`` is ``lnbench``."""

from robustbench_ln.cli.app import main

main()
