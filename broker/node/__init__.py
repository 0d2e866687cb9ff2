"""The running broker: the loop's turns, the commit thread, readers that catch up, time, start and end."""
