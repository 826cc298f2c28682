"""OpenDelta's interface, by DeltaHub: `deltahub.compat.opendelta` under the name of the original."""

import sys

del sys.modules[__name__]  # this module gives way to the one that install() puts there

from deltahub.compat.opendelta import install  # noqa: E402

install()
