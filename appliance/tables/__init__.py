"""The whole database schema: `school` has people, documents, talks, models and work; `practice` what teachers rehearse.

Every table is imported from here; all of them are in one `metadata`.
"""

from appliance.tables.practice import *  # noqa: F403
from appliance.tables.school import *  # noqa: F403
