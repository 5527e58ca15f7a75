# Stage 2 of mmpretrain's mobilenet-v2_8xb32_in1k.py: the same schedule, every k x k kernel of stage 1 as a frozen basis.
_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'

model = dict(backbone=dict(conv_cfg=dict(type='mmext.RefConv2d')))
# Stage 1's checkpoint, e.g. 'work_dirs/mobilenet-v2_8xb32_in1k/epoch_300.pth'. With None the basis is random, and stays so.
load_from = None
