_base_ = 'faster-rcnn_rednet50_fpn_1x_coco.py'

# The pyramid's outputs are involutions, too. rpn_head=dict(type='mmext.InvolutionRPNHead') takes the last 3x3 of the detector.
model = dict(neck=dict(type='mmext.InvolutionFPN'))
optim_wrapper = dict(clip_grad=dict(max_norm=40, norm_type=2))
