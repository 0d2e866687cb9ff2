from broker_native.membership import Membership
from broker_native.publisher import Publisher

CODES: dict[str, int]

Decided = tuple[int, int, int, int, int, int, int]

def decide_expecting(publisher: Publisher, body: bytes) -> Decided: ...
def decide_transaction(
    publisher: Publisher, body: bytes, acks: bool = False, members: dict[int, Membership] | None = None
) -> Decided: ...
def judge_transaction(publisher: Publisher, body: bytes) -> tuple[Decided, int]: ...
