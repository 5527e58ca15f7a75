# Stage 2 of mmpretrain's mobilenet-v3-large_8xb128_in1k.py: every k x k kernel of stage 1 as a frozen basis.
_base_ = 'mmpretrain::mobilenet_v3/mobilenet-v3-large_8xb128_in1k.py'

model = dict(backbone=dict(conv_cfg=dict(type='mmext.RefConv2d')))
# Stage 1's checkpoint, e.g. 'work_dirs/mobilenet-v3-large_8xb128_in1k/epoch_600.pth'. With None the basis stays random.
load_from = None
