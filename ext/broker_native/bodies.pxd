# Control bodies before anything is built from them. Nothing is shared: `walk` is for Python alone.
