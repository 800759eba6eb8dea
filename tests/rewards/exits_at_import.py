"""A verifier's module that ends its process when imported."""

import os

os._exit(0)
