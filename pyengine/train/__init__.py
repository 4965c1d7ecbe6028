"""Training: one loop, and the stages of the road as uses of it.

config.py settings | run.py the run's folder and markers | stages.py table of stages | __main__.py commands
loop.py the loop | optimizer.py updates, schedules | checkpoint.py training state | progress.py what one sees
pretrain.py and its neighbours: the stages
"""
