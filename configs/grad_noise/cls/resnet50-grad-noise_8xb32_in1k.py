_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

optim_wrapper = dict(type='mmext.GradNoiseOptimWrapper', eta=0.01)
