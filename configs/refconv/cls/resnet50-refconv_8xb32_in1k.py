# Stage 2 of mmpretrain's resnet50_8xb32_in1k.py: the same schedule, every k x k kernel of stage 1 as a frozen basis.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

model = dict(backbone=dict(conv_cfg=dict(type='mmext.RefConv2d')))
# Stage 1's checkpoint, e.g. 'work_dirs/resnet50_8xb32_in1k/epoch_100.pth'. With None the basis is random, and stays so.
load_from = None
