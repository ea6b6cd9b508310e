"""All knowledge of ranks: who takes part, how they agree, and how one that dies, hangs or is asked to stop ends the others.

Nothing else imports torch.distributed. Imports config and errors. Hands out `world.World`, which is passed to whoever needs
it and is the identity on one process; `stop_requests`; and `idle_cores`, the threads of work that rank 0 does alone.
"""
