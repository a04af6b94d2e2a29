"""Images made from random numbers, with exact masks.

`hands` (a `hand_pose` by way of a `zbuffer`) in front of `backgrounds`, `rings` on paper, `defects` added to any image.
`camera` has its effects, `many` the loop and the checks of the renderers. `masks` finds the object in a photo, that it
may be put in front of them. All are imported by name.
"""
