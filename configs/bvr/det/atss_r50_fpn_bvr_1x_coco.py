_base_ = 'mmdet::atss/atss_r50_fpn_1x_coco.py'

model = dict(
    bbox_head=dict(type='mmext.BVRHead', head='ATSSHead', base_size=(300, 300), share_geometry='all'),
)
