"""What every part of Kaiten shares: settings, errors, the request's context, and the command.

Importing it turns usage reports and hub access off, in this process and in those it starts: a
process of Kaiten opens no outside connection by itself. It also keeps tokenising on the thread that
asks for it. Libraries read these variables once, when
they are imported, so this can not wait for the settings.
"""

import os

__version__ = "0.1.0"

os.environ.update(
    BENTOML_DO_NOT_TRACK="True",
    WHYLOGS_NO_ANALYTICS="True",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    # Since 1.32, its wheels for Linux keep events in ~/.cache and send them to Microsoft.
    ORT_DISABLE_TELEMETRY="1",
    # On a thread pool of the tokenizers, one small request would wait for another's large one, and
    # the event loop with it.
    TOKENIZERS_PARALLELISM="false",
)
