"""Everything that touches LMDB: the journal's segments, their sealing, the archive that they go to, and reading.

`Log` is the door; the rest of the broker names nothing else of this package but its errors. The layers: `errors`,
`durable` (files that survive power loss), `directory` (whose data it is), `tables` (what a segment changed), `segment`
(one environment), `journal` (the chain of segments), `recovery`, `sealer`, `archive` (read), `archiver` and `archiving`
(written), `reader` (segments), `resolve` and `view` (all layers as one), `log`.
"""

from broker.log.errors import AppendError, AppendFull
from broker.log.log import Applier, ArchiveBy, Log
from broker.log.recovery import Recovery

__all__ = ["AppendError", "AppendFull", "Applier", "ArchiveBy", "Log", "Recovery"]
