//! Opening a port: finding the provider, and the chain of objects up to an enabled endpoint.

use std::{
    ffi::CString,
    net::SocketAddr,
    ptr::{self, NonNull},
};

use daos_xstream::FabricError;
use libfabric_sys as fi;

use super::{MemoryRules, Port, check, describe, failed};

/// What endpoint is wanted.
pub(crate) struct PortSpec<'a> {
    /// The provider, as libfabric names it.
    pub(crate) provider: &'a str,
    /// For providers with socket addresses: where to listen.
    pub(crate) bind: Option<SocketAddr>,
    /// For other providers: libfabric's name for the endpoint, if it is to have a certain one.
    pub(crate) service: Option<&'a str>,
    /// Sends that may be under way.
    pub(crate) transmit_queue: usize,
    /// Receives that may be posted.
    pub(crate) receive_queue: usize,
    /// Bytes that should go without a buffer of ours.
    pub(crate) inject_bytes: usize,
}

/// Owns libfabric's description of what there is.
struct Info(NonNull<fi::fi_info>);

impl Drop for Info {
    fn drop(&mut self) {
        // SAFETY: from fi_allocinfo or fi_getinfo, freed once.
        unsafe { fi::fi_freeinfo(self.0.as_ptr()) }
    }
}

impl Port {
    /// Opens the endpoint and enables it.
    pub(crate) fn open(spec: &PortSpec<'_>) -> Result<Port, FabricError> {
        crate::environment::prepare_process();
        fi::load().map_err(|error| FabricError::Failed(error.to_string()))?;
        let info = find(spec)?;
        build(&info, spec)
    }
}

fn find(spec: &PortSpec<'_>) -> Result<Info, FabricError> {
    let bad = |_| FabricError::BadAddress(format!("{:?} contains a zero byte", spec.provider));
    let provider = CString::new(spec.provider).map_err(bad)?;
    let (node, service) = match (spec.bind, spec.service) {
        (Some(bind), _) => (Some(bind.ip().to_string()), Some(bind.port().to_string())),
        (None, service) => (None, service.map(str::to_owned)),
    };
    let node = node.map(CString::new).transpose().map_err(bad)?;
    let service = service.map(CString::new).transpose().map_err(bad)?;
    let flags = if node.is_some() || service.is_some() { fi::FI_SOURCE } else { 0 }
        | if spec.bind.is_some() { fi::FI_NUMERICHOST } else { 0 };

    let mut found = ptr::null_mut();
    // SAFETY: fi_allocinfo gives zeroed attributes with all sub-structures except `nic`, or null. The provider's name in
    // them is freed by fi_freeinfo with `free`, so it is made with `strdup`. fi_getinfo reads strings and hints during the
    // call only and writes one pointer.
    let (code, hints) = unsafe {
        let hints = Info(
            NonNull::new(fi::fi_allocinfo()).ok_or_else(|| failed(fi::FI_ENOMEM as i32, "fi_allocinfo"))?,
        );
        let wanted = &mut *hints.0.as_ptr();
        wanted.caps = u64::from(fi::FI_MSG | fi::FI_RMA);
        wanted.mode = 0;
        wanted.addr_format = match spec.bind {
            Some(SocketAddr::V4(_)) => fi::FI_SOCKADDR_IN,
            Some(SocketAddr::V6(_)) => fi::FI_SOCKADDR_IN6,
            None => fi::FI_FORMAT_UNSPEC,
        };
        (*wanted.ep_attr).type_ = fi::fi_ep_type_FI_EP_RDM;
        if spec.provider == crate::DEFAULT_PROVIDER {
            (*wanted.ep_attr).protocol = fi::FI_PROTO_RXM_TCP;
        }
        // Messages stay in order, and a message sent after a completed write is seen after it.
        let order = u64::from(fi::FI_ORDER_SAS | fi::FI_ORDER_SAW);
        (*wanted.tx_attr).msg_order = order;
        (*wanted.tx_attr).size = spec.transmit_queue;
        (*wanted.tx_attr).inject_size = spec.inject_bytes;
        (*wanted.rx_attr).msg_order = order;
        (*wanted.rx_attr).size = spec.receive_queue;
        let domain = &mut *wanted.domain_attr;
        domain.threading = fi::fi_threading_FI_THREAD_DOMAIN;
        domain.data_progress = fi::fi_progress_FI_PROGRESS_MANUAL;
        domain.control_progress = fi::fi_progress_FI_PROGRESS_MANUAL;
        domain.resource_mgmt = fi::fi_resource_mgmt_FI_RM_ENABLED;
        domain.mr_mode =
            (fi::FI_MR_VIRT_ADDR | fi::FI_MR_ALLOCATED | fi::FI_MR_PROV_KEY | fi::FI_MR_ENDPOINT) as i32;
        (*wanted.fabric_attr).prov_name = libc::strdup(provider.as_ptr());
        let code = fi::fi_getinfo(
            fi::HEADER_VERSION,
            node.as_ref().map_or(ptr::null(), |node| node.as_ptr()),
            service.as_ref().map_or(ptr::null(), |service| service.as_ptr()),
            flags,
            hints.0.as_ptr(),
            &mut found,
        );
        (code, hints)
    };
    drop(hints);
    let place = spec.bind.map(|bind| format!(" for {bind}")).unwrap_or_default();
    let missing = |reason: &str| {
        FabricError::Failed(format!(
            "libfabric has no provider {:?} that can be used{place} ({reason})",
            spec.provider
        ))
    };
    let found = NonNull::new(found);
    match (code, found) {
        (0, Some(found)) => Ok(Info(found)),
        (0, None) => Err(missing("nothing found")),
        (code, _) => Err(missing(&describe(-code))),
    }
}

/// Closes what has been opened so far if a later step fails.
struct Undo(Vec<(*mut fi::fid, &'static str)>);

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some((object, what)) = self.0.pop() {
            // SAFETY: open, and everything that depends on it was opened later, so it is closed already.
            unsafe { super::close(object, what) }
        }
    }
}

fn build(info: &Info, spec: &PortSpec<'_>) -> Result<Port, FabricError> {
    let info = info.0.as_ptr();
    let mut undo = Undo(Vec::new());
    let place = spec.bind.map_or_else(|| spec.provider.to_owned(), |bind| bind.to_string());
    let in_use = |code: i32, call: &str| {
        if -code == fi::FI_EADDRINUSE as i32 {
            FabricError::Failed(format!("{place} is in use by another process"))
        } else {
            failed(-code, call)
        }
    };

    // SAFETY: for the whole chain: `info` is one of libfabric's own descriptions and alive; each call gets objects that
    // were opened before it and not closed, and writes one pointer that is checked before use.
    unsafe {
        let mut fabric = ptr::null_mut();
        check(fi::fi_fabric((*info).fabric_attr, &mut fabric, ptr::null_mut()), "fi_fabric")?;
        let fabric = opened(fabric, "fabric")?;
        undo.0.push((&raw mut (*fabric.as_ptr()).fid, "fabric"));

        let mut domain = ptr::null_mut();
        check(fi::fi_domain(fabric.as_ptr(), info, &mut domain, ptr::null_mut()), "fi_domain")?;
        let domain = opened(domain, "domain")?;
        undo.0.push((&raw mut (*domain.as_ptr()).fid, "domain"));

        let (queue, wait_descriptor) = open_queue(domain, spec)?;
        undo.0.push((&raw mut (*queue.as_ptr()).fid, "completion queue"));

        let mut attributes =
            fi::fi_av_attr { type_: fi::fi_av_type_FI_AV_TABLE, count: 64, ..Default::default() };
        let mut addresses = ptr::null_mut();
        check(
            fi::fi_av_open(domain.as_ptr(), &mut attributes, &mut addresses, ptr::null_mut()),
            "fi_av_open",
        )?;
        let addresses = opened(addresses, "address vector")?;
        undo.0.push((&raw mut (*addresses.as_ptr()).fid, "address vector"));

        let mut endpoint = ptr::null_mut();
        let code = fi::fi_endpoint(domain.as_ptr(), info, &mut endpoint, ptr::null_mut());
        if code != 0 {
            return Err(in_use(code, "fi_endpoint"));
        }
        let endpoint = opened(endpoint, "endpoint")?;
        undo.0.push((&raw mut (*endpoint.as_ptr()).fid, "endpoint"));
        let both = u64::from(fi::FI_SEND | fi::FI_RECV);
        check(fi::fi_ep_bind(endpoint.as_ptr(), &raw mut (*queue.as_ptr()).fid, both), "fi_ep_bind")?;
        check(fi::fi_ep_bind(endpoint.as_ptr(), &raw mut (*addresses.as_ptr()).fid, 0), "fi_ep_bind")?;
        let code = fi::fi_enable(endpoint.as_ptr());
        if code != 0 {
            return Err(in_use(code, "fi_enable"));
        }

        let mode = (*(*info).domain_attr).mr_mode as u32;
        let passes_through = (*(*info).ep_attr).protocol == fi::FI_PROTO_RXM_TCP;
        undo.0.clear();
        Ok(Port {
            endpoint,
            addresses,
            queue,
            domain,
            fabric,
            wait_descriptor,
            inject_bytes_max: (*(*info).tx_attr).inject_size,
            memory_rules: MemoryRules {
                provider_keys: mode & fi::FI_MR_PROV_KEY != 0,
                virtual_addresses: mode & fi::FI_MR_VIRT_ADDR != 0,
                bind_to_endpoint: mode & fi::FI_MR_ENDPOINT != 0,
            },
            closes_busy_connections: passes_through,
        })
    }
}

/// A completion queue, with a wait descriptor if that is wanted and the provider has one.
fn open_queue(
    domain: NonNull<fi::fid_domain>,
    spec: &PortSpec<'_>,
) -> Result<(NonNull<fi::fid_cq>, Option<i32>), FabricError> {
    let mut attributes = fi::fi_cq_attr {
        size: 2 * (spec.transmit_queue + spec.receive_queue),
        format: fi::fi_cq_format_FI_CQ_FORMAT_MSG,
        // Polling is cheaper, too, with a descriptor: libfabric then asks the kernel about all connections at once.
        wait_obj: fi::fi_wait_obj_FI_WAIT_FD,
        ..Default::default()
    };
    let mut queue = ptr::null_mut();
    // SAFETY: the domain is open; attributes are read and one pointer is written.
    let mut code = unsafe { fi::fi_cq_open(domain.as_ptr(), &mut attributes, &mut queue, ptr::null_mut()) };
    let without = [fi::FI_ENOSYS as i32, fi::FI_EOPNOTSUPP as i32, fi::FI_EINVAL as i32];
    if without.contains(&-code) {
        attributes.wait_obj = fi::fi_wait_obj_FI_WAIT_NONE;
        // SAFETY: as above; the first attempt has opened nothing.
        code = unsafe { fi::fi_cq_open(domain.as_ptr(), &mut attributes, &mut queue, ptr::null_mut()) };
    }
    check(code, "fi_cq_open")?;
    let queue = opened(queue, "completion queue")?;
    if attributes.wait_obj == fi::fi_wait_obj_FI_WAIT_NONE {
        return Ok((queue, None));
    }
    let mut descriptor: i32 = -1;
    // SAFETY: the queue is open and was opened with FI_WAIT_FD, for which this command stores one descriptor.
    let code = unsafe {
        fi::fi_control(&raw mut (*queue.as_ptr()).fid, fi::FI_GETWAIT as i32, (&raw mut descriptor).cast())
    };
    Ok((queue, (code == 0 && descriptor >= 0).then_some(descriptor)))
}

fn opened<T>(object: *mut T, what: &str) -> Result<NonNull<T>, FabricError> {
    NonNull::new(object).ok_or_else(|| FabricError::Failed(format!("libfabric opened no {what}")))
}
