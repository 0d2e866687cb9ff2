"""Load tests: Locust users that talk to a broker at any address, check every message, and end in a verdict.

`python -m loadtest` is the front for people; `locust -f loadtest/locustfile.py` is the same for those who know Locust.
README.md beside this file says how both are used and what the figures mean.

It stands above everything else here and uses `broker.blocking` alone to talk to brokers. Importing this package imports
neither Locust nor gevent: importing Locust replaces the standard library's sockets in the whole process, so only what
Locust itself loads may do that.
"""
