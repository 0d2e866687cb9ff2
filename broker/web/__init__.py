"""What browsers are given, files as they are: the client, the console and the chat page. No code but this docstring.

The client (`client/`) is TypeScript, with what the compiler makes of it beside it; the pages are written as they are
served. None of them asks anything of another server, and each is under the strictest policy that lets it run.
"""
