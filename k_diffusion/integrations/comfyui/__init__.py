"""Nodes for ComfyUI: every sampler, every schedule, the recommended recipe and calibration.

Link or copy this folder to custom_nodes.
"""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ['NODE_CLASS_MAPPINGS', 'NODE_DISPLAY_NAME_MAPPINGS']
