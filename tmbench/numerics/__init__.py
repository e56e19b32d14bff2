"""The numerical experiments behind the method: one file each, which measures, tabulates and draws.

`measure()` returns what was measured beside what theory says; `table` and `draw` need nothing else.
Imports nothing, so that `tmbench numerics --help` starts without torch.
"""
