"""Everything that exists for speed alone; each function has a plain twin outside of this package.

`fast.enable(judge)` switches all of it on.
"""

from taosr1.fast.engine import FAST, enable

__all__ = ["FAST", "enable"]
