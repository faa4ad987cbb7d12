"""The page: handlers only, every number comes from :mod:`vtviz`. One file a tab."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: nothing calls home
