_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# The other settings of the pyramid hold: three maps, five outputs.
model = dict(neck=dict(type='mmext.DFPN'))
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
