"""On which line a setting stands, in TOML's usual and some of its unusual ways."""

from __future__ import annotations

import tomllib

from broker.config.lines import setting_lines

TEXT = '''\
# tcp = "no"
server.loop = "auto"
[server]
tcp = "127.0.0.1:1"  # [limits]
"data" = "d"
unix = """
log_level = "no"
"""
log_format = """text"""

[ limits ]
  channels_max=5
hello_timeout_s =
'''

PROFILES = """\
[[profiles]]
pattern = "a"
[limits]
channels_max = 1
[[ "profiles" ]]

pattern = "b"
durability = "synced"
"""


def test_lines_of_keys_and_tables() -> None:
    assert setting_lines(TEXT) == {
        "server": 2,
        "server.loop": 2,
        "server.tcp": 4,
        "server.data": 5,
        "server.unix": 6,
        "server.log_format": 9,
        "limits": 11,
        "limits.channels_max": 12,
        "limits.hello_timeout_s": 13,
    }


def test_lines_of_arrays_of_tables() -> None:
    tomllib.loads(PROFILES)
    lines = setting_lines(PROFILES)
    assert (lines["profiles[0]"], lines["profiles[0].pattern"]) == (1, 2)
    assert lines["limits.channels_max"] == 4
    assert (lines["profiles[1]"], lines["profiles[1].pattern"], lines["profiles[1].durability"]) == (5, 7, 8)


def test_a_table_within_a_line_is_where_it_begins() -> None:
    lines = setting_lines("\nserver = { tcp = 5 }\nprofiles = [\n{ pattern = 'a' }]")
    assert lines["server"] == 2
    assert lines["profiles"] == 3
    assert "server.tcp" not in lines
