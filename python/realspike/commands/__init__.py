"""The commands of `realspike`, one per file: ``add(commands)`` declares it, ``run`` carries it out.

Nothing here imports torch at the top: --help and wrong arguments answer at once.
"""
