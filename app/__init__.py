"""The page: handlers only, every number comes from :mod:`vtviz`. One file a tab."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: nothing calls home
# Gradio summed up its last 10,000 calls after each call, for a view that this page does not have
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"], os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "100", str(2**31)
