_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

norm_cfg = dict(type='GN', num_groups=32, requires_grad=True)
model = dict(
    neck=dict(norm_cfg=norm_cfg),
    bbox_head=dict(type='mmext.BVRHead', head='RetinaHead', norm_cfg=norm_cfg, keypoint_head=dict(norm_cfg=norm_cfg)),
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
