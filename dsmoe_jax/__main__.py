"""`python -m dsmoe_jax`: the console script `dsmoe`."""

from dsmoe_jax import main

if __name__ == "__main__":
    main.entry_point()
