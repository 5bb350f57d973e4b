"""The rules: which operation makes which sum of linear operators out of its inputs."""
