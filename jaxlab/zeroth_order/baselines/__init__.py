"""Methods that ZOFL is compared with: other ways from one iterate to the next, under its interface.

Each builder takes a `Problem` and returns the `(init, step)` of `method.make_algorithm`, so that a
comparison differs in one call. `lagrangian` holds what the primal-dual methods share.
"""
