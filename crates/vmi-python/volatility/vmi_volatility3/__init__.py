"""Volatility 3 on every target of the package vmi.

A location is `vmi:TARGET`, where TARGET is what `vmi.open` takes. Options stand before the colon, each with a plus sign:

- `vmi+snapshot:TARGET` copies the memory of a running guest first, and everything is read from that one moment.
- `vmi+nosymbols:TARGET` makes no symbol file of a Linux kernel for which Volatility has none.

`vol` finds all of it by the file volatility3/plugins/vmi_targets.py. Programs that use Volatility as a library get it with
`framework.import_files(volatility3.plugins)`, as they get the plugins.
"""

from vmi_volatility3.machines import Location, OpenedMachine, close_all, opened

__all__ = ["Location", "OpenedMachine", "close_all", "opened"]
