"""What a helper far away needs to see, in one file, and nothing about anybody.

`own_words` lets through only what the product itself has said; `bundle` collects and packs. Nothing is sent anywhere.
"""

from appliance.support.bundle import contents, pack
from appliance.support.own_words import OwnWords

__all__ = ["OwnWords", "contents", "pack"]
