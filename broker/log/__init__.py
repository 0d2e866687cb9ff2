"""Everything that touches LMDB: the journal's segments, their sealing, replay and reading.

`Log` is the door; the rest of the broker names nothing else of this package but its errors. The layers: `errors`,
`durable` (files that survive power loss), `directory` (whose data it is), `segment` (one environment), `journal` (the
chain of segments), `recovery`, `sealer`, `reader`, `log`.
"""

from broker.log.errors import AppendError, AppendFull
from broker.log.log import Applier, Log
from broker.log.recovery import Recovery

__all__ = ["AppendError", "AppendFull", "Applier", "Log", "Recovery"]
