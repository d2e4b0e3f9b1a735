"""What the doctor looks at beyond the parts themselves: the machine, its border, and what is kept on it.

`Check` is what every look comes to. Each module holds the looks of one place; none of them changes anything.
"""

from appliance.checkup.check import Check

__all__ = ["Check"]
