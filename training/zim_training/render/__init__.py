"""Composites that the training device draws itself, with prompts and cues, from layers it holds.

``layers`` writes objects and backgrounds, ``scenes`` lays them over each other, ``prompts`` asks
for what is in a scene, ``cues`` describes the prompts, ``batches`` puts it together.
"""
