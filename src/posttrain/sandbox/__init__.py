"""Model-written Python runs here and nowhere else: a process of its own, no network, no files but a scratch
folder, bounded in time, memory and output (`docs/sandbox.md`).
"""

from posttrain.sandbox.backends import SandboxName
from posttrain.sandbox.checking import Checked, Sandbox, Tests, open_sandbox
from posttrain.sandbox.limits import Limits

__all__ = ["Checked", "Limits", "Sandbox", "SandboxName", "Tests", "open_sandbox"]
