"""learngene."""
from learngene._version import __version__
