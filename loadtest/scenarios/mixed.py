"""Everything at once, as a broker that serves many teams has it: all users by their weights, most of them in chats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.scenarios.backlog import BacklogUser
from loadtest.scenarios.celebrity import CelebrityUser
from loadtest.scenarios.chat import ChatUser
from loadtest.scenarios.fanout import FanoutUser
from loadtest.scenarios.reconnect import ReconnectUser

if TYPE_CHECKING:
    from locust import User

USERS: list[type[User]] = [ChatUser, FanoutUser, CelebrityUser, BacklogUser, ReconnectUser]


def user_classes() -> dict[str, list[type[User]]]:
    """Return whose users there are in each scenario."""
    alone: dict[str, list[type[User]]] = {str(vars(each)["kind"]): [each] for each in USERS}
    return {"mixed": USERS, **alone}
