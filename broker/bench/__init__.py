"""`broker bench`: works that load a broker, verify every message, and report what it cost.

Native works (`load`) hand their connections to the driver of `broker_native.driver`; `client` measures the Python
client and the embedded home instead. Nothing here is imported by the broker itself.
"""
