_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'

# Learning rate, momentum and weight decay are the base's.
optim_wrapper = dict(type='mmext.SAGDOptimWrapper', optimizer=dict(type='mmext.SAGD'))
