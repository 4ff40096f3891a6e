"""The foundation of Kaiten: settings, errors, the request's context and shared types.

Importing it disables usage reports and hub access, in this process and its children: Kaiten opens
no outside connection on its own. It also keeps tokenization on the calling thread. Libraries read
these variables once, on import, so this cannot wait for the settings.
"""

import os

__version__ = "0.1.0"

os.environ.update(
    BENTOML_DO_NOT_TRACK="True",
    WHYLOGS_NO_ANALYTICS="True",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    # Since 1.32, its wheels for Linux store events in ~/.cache and send them to Microsoft.
    ORT_DISABLE_TELEMETRY="1",
    # In the tokenizers' thread pool, a small request would wait for another's large one, and the
    # event loop with it.
    TOKENIZERS_PARALLELISM="false",
)
