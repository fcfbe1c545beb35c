"""`python -m scpo_ray.cli`, for launchers that take a module: torchrun, a job of a cluster."""

from scpo_ray.cli.main import main

if __name__ == "__main__":
    main()
