"""The broker's native kernels. A missing extension is an error: there is no slow fallback."""
