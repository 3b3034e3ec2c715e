"""Makes Volatility 3 know targets of the package vmi: vmi_volatility3 says how."""

# By being imported the classes are found: as a URL handler, as stackers, as automagic.
from vmi_volatility3 import automagic, stackers, urls  # noqa: F401
